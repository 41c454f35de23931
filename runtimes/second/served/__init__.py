"""How a linear lies in a served folder, by the name that its configuration gives the layout."""
