"""WHAT is computed: plain typed functions on tables and tensors, free of any orchestrator."""
