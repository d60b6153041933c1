"""Parts shared by rules and objectives; torch only."""
