"""`python -m timm_neutreno`: the command `neutreno`."""

from timm_neutreno_cli.main import main

main()
