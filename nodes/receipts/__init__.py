"""Receipts for forgetting: peers confirm that what was taken back is erased, and the person sees who did."""
