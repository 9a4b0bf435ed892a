"""A language model proposes networks as code; befit keeps it honest: contract, fingerprints, gate, sandbox, loop."""
