"""The groups of the command line: each module parses the commands of one group, calls what does the work and prints."""
