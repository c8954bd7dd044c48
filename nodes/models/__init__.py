"""Models: any vendor in, one stream of text out."""
