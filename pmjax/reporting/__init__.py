"""What people look at: logs, the status line, pictures and the HTML report."""
