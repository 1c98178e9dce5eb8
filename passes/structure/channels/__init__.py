"""Where the channels of a value come from and go to."""
