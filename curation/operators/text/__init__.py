"""Text burned into the picture: found, followed over time, read, told apart by kind, cropped away if possible."""
