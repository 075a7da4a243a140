"""Faces: detectors behind one interface, and tracks of what they find."""

from __future__ import annotations

from curation.faces.detect import Face, FaceDetector, load_detector, mouth_box
from curation.faces.near import NearFaces
from curation.faces.track import FaceTracker, TrackBox

__all__ = ["Face", "FaceDetector", "FaceTracker", "NearFaces", "TrackBox", "load_detector", "mouth_box"]
