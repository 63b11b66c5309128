"""The training loop (train.py), its command line (trainer.py) and the small tools of both (train_utils.py)."""
