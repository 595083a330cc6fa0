"""Private servers and the supervisor of `broker up`: real servers, in one data directory, on one command."""
