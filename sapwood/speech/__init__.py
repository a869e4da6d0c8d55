"""From recordings to transcripts: decoding in a bounded process, features, windows of 30 s, and what models of the Whisper
family say of them. Knows no engine and no server: whoever has one answers what a transcription wants to know of it.
"""
