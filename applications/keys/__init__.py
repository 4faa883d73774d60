"""Multi-trigger keys: stamps that open one task of a shared network. Obfuscation, not security."""
