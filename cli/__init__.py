"""Commands and the training engine, installed as `timm_neutreno_cli`."""
