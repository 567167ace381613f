"""Signal from Noise: the code of the book, tangled from its chapters."""
