"""The open leaderboard: its rules, the check of a new row against them, and the page and list made of the rows.

One direction: rules → place → check → entries → picture, page → __main__ (the command).
"""
