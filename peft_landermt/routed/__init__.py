"""What this package's methods share: samples of a call go to adapters and language pairs."""
