"""A model as a web service: what is asked and answered, who may ask, and the network that answers."""
