"""Sources in, a candidate release out."""
