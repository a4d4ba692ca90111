"""What PEFT users do, each a function of one architecture with one kind of adapter; `test_behaviours.py` runs them."""
