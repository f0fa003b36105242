"""Everything that touches Kopf: its handlers, its settings, its login, and the thread it runs in."""
