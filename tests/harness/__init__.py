"""Real parts that tests and benchmarks run against."""
