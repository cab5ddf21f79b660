"""Each figure that the README quotes is a row that one of these scripts prints."""
