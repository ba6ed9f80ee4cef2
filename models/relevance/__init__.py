"""How a model is calibrated: what fits what, the cosines of both, and the curve between them."""
