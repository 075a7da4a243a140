"""One pass over a video: shots, clips, tracks and what every operator measures."""
