"""WHERE work runs and where bytes live: storage, records, fingerprints, Ray session, pools, training launcher."""
