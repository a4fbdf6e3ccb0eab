"""WHEN and in what order: configuration, plan, Prefect flows and the command line."""
