"""Reading and writing media: containers, the 25 fps clock, sound, clips."""
