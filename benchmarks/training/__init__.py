"""Training of the small models in rag/models; needs torch, lightgbm and the data sets."""
