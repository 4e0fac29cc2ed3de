"""Tests run in two processes side by side (see pyproject.toml): one thread each, or they wait for each other."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script's background job: the commands under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

torch.set_num_threads(1)
