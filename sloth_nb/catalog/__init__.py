"""What models exist: families, shapes, licences, good defaults. Data and plain Python: never torch."""
