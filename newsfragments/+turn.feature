A small call costs about two fifths less CPU: sends of one turn go together, and heads that repeat are read once.
