"""The admin API: people, clients, certificates, and what is mended by hand."""
