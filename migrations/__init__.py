"""The schema's history, linear and never edited once landed; ships in the wheel beside the controller."""
