"""Pages for people: readers find their messages, admins mend, auditors look back."""
