"""What people read through the API: messages, figures, history."""
