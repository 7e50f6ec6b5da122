"""A fixed table of 256 colours that people can distinguish, most of the colour-blind too.

The first six are Okabe and Ito's, without black and vermilion. Each of the others is, of a grid of 9x9x9, the one
farthest in CIELAB from all before it, and from black, white and the colour of wrong pixels, as seen by all, by
deuteranopes and by protanopes (Machado, Oliveira and Fernandes 2009). tests/runs/test_mask_figures.py recomputes it.
"""

_HEX = """
0072b2 e69f00 009e73 cc79a7 56b4e9 f0e442 0000ff 9f0000 00209f 00ff9f bf40ff 600060 802040 bf8040 dfbf60 806040
0000bf ff6080 bf0080 ff0000 bfdfbf 20409f 809fff ffbfdf 406080 802020 4040ff 608000 bf9f9f bf40bf ff0060 ff9f80
9fff80 600080 9f2060 9f80bf 4060df ff8060 6020bf 2080df bfff00 dfdf60 9fbfbf ff9f40 bf6060 bfbf9f 8040bf 4040df
df0040 9fffbf 9f609f 9f409f ffbf00 9f9fbf ffdfdf 800000 606020 dfbfff bfdf80 2000df 80bfdf 409f00 800060 009f9f
0080ff bf2060 ffdf9f 9fbf80 df9fff 602020 ff9fbf 602040 800080 ffbf40 60bf60 ff2080 ff8040 80009f ffdfff 009fdf
608040 9f4020 804040 9f80ff ff4040 80bf00 9f60df df80ff 9f4000 60609f 80bf40 4020df ff9fdf 9fdf9f 206060 404080
df60bf 0020bf 4020ff 40df60 bf6000 ff409f 209f80 00ff60 80df00 ff60df bf8020 8040ff 808060 9f9fdf 208060 00ff40
8020bf 9f2040 80409f 60df40 bf4040 40809f bf0020 df00bf 608080 9f9f60 20df80 9f4080 80bfff 8060bf ff00df 204020
802080 9f6020 9f9f00 00609f ff6040 9f20bf df80bf 406000 9f9f40 ffdf00 dfbfbf 40bf80 df00ff df9fdf ff9fff 9f6000
9f40df ff4080 802060 df9f9f 9f2020 8020df 609fbf 40009f 40209f 204040 df2020 9f6060 408020 809f80 bf809f 9fff60
dfbf80 bf9fff dfbfdf ff9f9f bfbf20 404000 ff6020 80bf9f ffbf60 804020 80809f 9fdfff dfdf40 8020ff ff9f60 204060
df809f ffdf80 df8040 ff40ff ffbfff bf9fbf bf6020 402080 bf0000 8000df 4020bf 9f809f bf0040 bfbfdf bf60bf 9f4060
4000bf ff6000 9fbf60 dfbf40 dfdfdf dfdf9f df8060 bf20df bfbfff dfdfff bfdf20 80ff00 df4020 80209f ff9f20 40ff80
ffdf60 9fff9f dfbf9f 8000ff bf8060 606080 bf9f20 bfbfbf bf2080 dfdfbf 804060 0020df ffbf9f 404040 bfbf40 bf0060
404060 00bf00 dfdf80 008080 009fff 80df80 9fdf40 df4060 406020 609f9f 2040bf 0060bf 808080 9f8060 bf9f40 ffdfbf
dfbf00 9f6040 809f40 20bf40 9fdf60 bf9f60 8080df 9f2000 609fdf 204080 bf2040 6060df df8080 bf00bf 60df9f bf20bf
"""
COLOURS = [(value >> 16, value >> 8 & 255, value & 255) for value in (int(word, 16) for word in _HEX.split())]
"""Red, green and blue, 0 to 255: the first n do not depend on how many follow."""
