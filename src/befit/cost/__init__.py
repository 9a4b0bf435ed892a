"""What an architecture costs: counted exactly (`count`), measured on the device (`latency`)."""
