"""Sentence templates of the simulated dialogues: one set for training, another for held-out talk.

A slot is `{film}`, `{other}` (films), `{want}` (a wish, as a noun phrase), `{avoid}` (a clause) or
`{job}`.
"""

from __future__ import annotations

TRAIN: dict[str, tuple[str, ...]] = {
    "seeker_hello": (
        "Hi there!",
        "Hello!",
        "Hey, how are you?",
        "Good evening!",
        "Hi, I could use some help.",
        "Hello, nice to meet you.",
    ),
    "recommender_hello": (
        "Hi! What would you like to watch?",
        "Hello, what are you in the mood for?",
        "Hey! Tell me what you like.",
        "Good to meet you. What kind of film do you want?",
        "Hello! I am happy to help you find a film.",
    ),
    "persona": (
        "I work as {job}.",
        "By the way, I am {job}.",
        "I am {job} and I need a break.",
        "As you may know, I am {job}.",
    ),
    "remark": (
        "It is raining here today.",
        "My cat is asleep on the sofa.",
        "Work was long this week.",
        "I just made some popcorn.",
        "My friends are coming over later.",
        "I finally have a free evening.",
    ),
    "request": (
        "I am looking for {want}.",
        "I would like {want}.",
        "I am in the mood for {want}.",
        "Do you know {want}?",
        "Tonight I want {want}.",
        "Please recommend me {want}.",
        "I really feel like {want}.",
        "I hope to find {want}.",
    ),
    "liked": (
        "I loved {film}.",
        "I really enjoyed {film}.",
        "My favorite is {film}.",
        "Last week I saw {film} and liked it.",
        "I have watched {film} many times.",
        "I liked {film} a lot.",
    ),
    "avoid": ("But {avoid}.", "One thing, {avoid}.", "Just so you know, {avoid}."),
    "ask_liked": (
        "Which films have you enjoyed?",
        "What is a film you love?",
        "Can you name a film you liked?",
        "What did you like recently?",
    ),
    "ask_more": (
        "Can you tell me a bit more?",
        "Do you have anything else in mind?",
        "Any other wishes?",
        "What else should it have?",
        "Is there a decade or a topic you prefer?",
    ),
    "refine": (
        "I think {want} would be great.",
        "Maybe {want}.",
        "I would prefer {want}.",
        "It should be {want}.",
        "I usually enjoy {want}.",
    ),
    "shrug": (
        "No, I am open to anything.",
        "Not really, surprise me.",
        "I do not mind, you choose.",
    ),
    "recommend": (
        "You should watch {film}.",
        "I recommend {film}.",
        "How about {film}?",
        "Have you seen {film}?",
        "I think you would like {film}.",
        "Then {film} is a good choice.",
        "Try {film}, it fits well.",
        "Maybe {film} is for you.",
    ),
    "recommend_two": (
        "You could try {film} or {other}.",
        "I would suggest {film} and also {other}.",
        "Both {film} and {other} come to mind.",
    ),
    "rewatch": (
        "You could always watch {film} again.",
        "Since you like it, why not see {film} once more?",
    ),
    "reject_seen": (
        "I have already seen that one.",
        "I saw it last month.",
        "Seen it, sorry. Anything else?",
    ),
    "reject_taste": (
        "That does not sound like me.",
        "I do not think I would like that.",
        "Not that one please.",
    ),
    "reject_wish": (
        "No, I would rather have {want}.",
        "Hmm, I was hoping for {want}.",
        "Not quite, I want {want}.",
        "That is not it, I meant {want}.",
    ),
    "accept": (
        "That sounds great, thank you!",
        "Perfect, I will watch it tonight.",
        "I have not seen it, thanks!",
        "Great idea, I will try that.",
        "Thanks, that is what I wanted.",
    ),
    "close": (
        "You are welcome, enjoy!",
        "Have a nice evening!",
        "Glad I could help.",
        "Enjoy the film, bye!",
    ),
    "close_film": (
        "Great, enjoy {film}!",
        "I hope you like {film}.",
        "Have fun with {film} tonight!",
    ),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "seeker_hello": ("Hi, good morning!", "Hello friend.", "Hey there, got a minute?"),
    "recommender_hello": (
        "Hello, how can I help you today?",
        "Hi, which films do you like?",
        "Hey, are you looking for a film?",
    ),
    "persona": ("My trade: I am {job}.", "I earn my living as {job}."),
    "remark": (
        "My dog wants to play all day.",
        "It is so cold outside.",
        "I am tired after work.",
        "The weekend is almost here.",
    ),
    "request": (
        "Could you find me {want}?",
        "I want to see {want}.",
        "Today I feel like watching {want}.",
        "Can you suggest {want}?",
        "I need {want}.",
    ),
    "liked": (
        "A film I love is {film}.",
        "I am a big fan of {film}.",
        "I recently watched {film} and it was great.",
        "For example, I enjoyed {film}.",
    ),
    "avoid": ("Please note, {avoid}.", "And by the way, {avoid}."),
    "ask_liked": (
        "What films do you usually like?",
        "Is there a film you enjoyed recently?",
        "Tell me a film you love.",
    ),
    "ask_more": (
        "What else do you like?",
        "Could you say more about it?",
        "Do you prefer a decade or a topic?",
    ),
    "refine": (
        "Ideally {want}.",
        "I like {want}.",
        "Perhaps {want} would be nice.",
    ),
    "shrug": ("Anything is fine with me.", "I have no other wishes, really."),
    "recommend": (
        "I would suggest {film}.",
        "You might like {film}.",
        "What about {film}?",
        "My recommendation is {film}.",
        "Did you already watch {film}?",
    ),
    "recommend_two": (
        "Maybe you would enjoy {film} or {other}.",
        "I can recommend {film} and {other}.",
    ),
    "rewatch": ("Why not watch {film} one more time?",),
    "reject_seen": ("I already watched it.", "Sorry, I know that one already."),
    "reject_taste": ("I am not sure about that one.", "That is not really for me."),
    "reject_wish": (
        "I was thinking of {want}.",
        "Thanks, but I would like {want}.",
        "Hmm no, I prefer {want}.",
    ),
    "accept": (
        "Sounds good, I will watch that.",
        "I will try it, thank you so much!",
        "Oh, that is a great idea, thanks.",
    ),
    "close": ("You are welcome, goodbye!", "Happy to help, enjoy your evening!", "Have fun!"),
    "close_film": ("Then enjoy {film}!", "I am sure {film} will be fun."),
}
