"""Methods that DyMo is compared with, one per file."""
