"""The methods that DyMo is compared with: one file each."""
