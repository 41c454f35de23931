"""Apache TVM, the runtime below MLC, in an environment and a process of its own."""
