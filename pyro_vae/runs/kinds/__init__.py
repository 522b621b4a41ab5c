"""Kinds of models that have a name: a file each, with what it is made of and what of a data set its programs take."""
