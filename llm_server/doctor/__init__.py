"""What is wrong with this machine or installation, and the command that mends it."""
