"""The puppet world: a procedural corpus of talking puppets with ground truth and injectable faults.

It stands in for real video where none may be used: everything the toolkit does to it can be measured.
"""

from __future__ import annotations

from curation.puppets.corpus import MANIFEST, Plan, Puppet, PuppetFile, make, make_one, plan, read_manifest, sample
from curation.puppets.faults import FAULTS, Fault

__all__ = [
    "FAULTS",
    "MANIFEST",
    "Fault",
    "Plan",
    "Puppet",
    "PuppetFile",
    "make",
    "make_one",
    "plan",
    "read_manifest",
    "sample",
]
