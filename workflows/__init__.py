"""What joins packages: the training cycle with its gathering, generation of a video from files, the demo."""
