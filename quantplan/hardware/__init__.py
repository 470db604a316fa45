"""What a host is: GPU, RAM, CPU, disk."""
