"""How each outside service is spoken to: one module per service, no Prefect, no MNIST."""
