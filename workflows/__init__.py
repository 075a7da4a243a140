"""What joins packages: the training cycle with its gathering, generation of a video from files, the demo."""

import configs  # noqa: F401 - first of all, so that nothing imported later reports or looks anything up unasked
