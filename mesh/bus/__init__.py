"""The bus: where frames travel. One interface, two drivers that pass one contract suite."""
