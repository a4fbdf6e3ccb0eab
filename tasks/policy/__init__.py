"""Policy by evidence: which way of selecting beats random at a keep, found by a race on validation and confirmed on test."""
