"""Text burned into the picture: found, followed over time, read, told apart by kind, and cropped away where possible."""
