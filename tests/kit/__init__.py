"""What tests share: builders, a broker, pipelines, receivers."""
